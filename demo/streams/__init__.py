"""What happens while the grocer is open: a web shop, its payments, its vans, people who join."""
