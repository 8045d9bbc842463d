"""Authentication and tenants: identities, how callers prove them, and tenants' grants and quotas."""
