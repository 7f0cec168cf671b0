"""The API as a process that may open 1,024 files, which is the usual limit."""

import resource

from app.main import main

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 1024))
    main()
