"""Bytes in, values out: no Twisted, no sockets, no clock, no log."""
