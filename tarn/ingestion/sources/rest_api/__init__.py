"""REST APIs: signing in, pages, and what an API says of itself."""
