"""The HTTP proxy: requests in, one judged exchange each, answers in order."""
