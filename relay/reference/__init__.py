"""The executable specification: an inbox and a store in memory. A node never imports it."""
