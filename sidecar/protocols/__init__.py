"""What is done with connections: IProtocol factories for any Twisted endpoint."""
