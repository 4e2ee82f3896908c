"""Ranks, the DeepSpeed engine and where ZeRO keeps parameters."""
