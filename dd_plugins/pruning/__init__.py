"""Pruning: scores of single images, selectors, and strategies made of both."""
