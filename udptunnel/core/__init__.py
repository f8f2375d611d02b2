"""Rules: sessions, associations, queues and access. The time is an argument; what must be sent is a result."""
