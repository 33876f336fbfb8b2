"""Which images are worth their storage: scores of single images, selectors, and strategies made of both."""
