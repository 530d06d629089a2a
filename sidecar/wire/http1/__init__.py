"""HTTP/1 messages (RFC 9110, RFC 9112): strict reading, and writing them anew."""
