"""The five servers of an installation, and a read, a write and a WebSocket path of each."""

TOOLS = ("mlflow", "prefect", "decision", "models", "evidently")
# of each server: what reads, what writes, where a WebSocket is or would be
CALLS = {
    "mlflow": ("/api/2.0/mlflow/registered-models/search", "/api/2.0/mlflow/registered-models/create", "/ws"),
    "prefect": ("/api/admin/settings", "/api/deployments/filter", "/api/events/in"),
    "decision": ("/status", "/decide", "/ws"),
    "models": ("/models", "/predict", "/ws"),
    "evidently": ("/api/projects", "/api/projects", "/ws"),
}


def url_of(stack, tool):
    """Return the base URL of a server."""
    return getattr(stack.settings, f"{'model' if tool == 'models' else tool}_url")
