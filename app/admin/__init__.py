"""Keys, access, the audit chain, and the deployment configuration."""
