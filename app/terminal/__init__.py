"""Parts that the commands of every feature share: the client, output, options, failures."""
