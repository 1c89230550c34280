"""Function Compute 3.0's REST API (`/2023-03-30/...`), as its official SDKs speak it."""
