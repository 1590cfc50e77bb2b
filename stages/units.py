"""Bytes in what names end in: ``_mib``, ``_gib``."""

MIB, GIB = 2**20, 2**30
