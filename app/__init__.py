"""Tween: text classification from the weights between models."""

__version__ = "0.1.0"
