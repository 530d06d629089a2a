"""Everything that talks to the Linux kernel beyond plain sockets."""
