"""Whether interception is effective, shown by a real connection."""
