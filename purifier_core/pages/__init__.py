"""What the book's pages show, each made from records and published numbers alone. Nothing here imports torch."""
