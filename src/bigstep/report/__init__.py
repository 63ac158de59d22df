"""The pictures and the page a person looks at."""
