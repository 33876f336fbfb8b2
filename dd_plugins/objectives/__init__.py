"""How synthetic images are learned: one matching objective a file, the file named like its entry point."""
