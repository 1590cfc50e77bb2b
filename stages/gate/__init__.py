"""Refuse a quantized checkpoint that is damaged or talks nonsense."""
