"""How synthetic images are stored: one method a file, the file named like its entry point."""
