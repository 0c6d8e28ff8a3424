"""Derivatives from function values alone."""
