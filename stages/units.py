"""Binary units in bytes; names end in what they count (``_gib``, ``_mib``, ``_kib``)."""

KIB, MIB, GIB = 2**10, 2**20, 2**30
