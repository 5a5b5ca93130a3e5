"""The socket that a server listens on."""

import socket


def bind(host: str, port: int) -> socket.socket:
    """A socket at this address. Raises OSError where it is taken or cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches off the 40 ms for which TCP holds back small writes only where the protocol is named
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the port of a server that just ended is free
    try:
        made.bind((host, port))
        made.listen(2048)
        made.settimeout(0)
    except (OSError, OverflowError) as error:
        made.close()
        raise OSError(
            f"port {port} of {host} cannot be used ({getattr(error, 'strerror', None) or error}); choose another with "
            "--port, or end the program that has it."
        ) from error
    return made
