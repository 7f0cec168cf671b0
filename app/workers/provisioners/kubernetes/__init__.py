"""Workers as the pods of a Deployment of Kubernetes, by the few calls of its API that this takes."""
