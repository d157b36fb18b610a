# Written by gpurun. Keeps gpurun's own requests and settings, and the URL of the container's own network, out of this server's log.
import logging
import re
import sys


class _Quiet(logging.Filter):
    mark = "MARK"
    noise = re.compile(
        r"is running at:?\s*$|^\s*(or )?https?://\S*$|To access the (server|notebook), open this file"
        # gpurun's configuration has the names that every version of Jupyter reads, and so the old ones.
        r"|\b(token|password|allow_password_change)\b.*( is deprecated in | has moved from )"
    )

    def filter(self, record):
        try:
            message = record.getMessage()
            if self.mark in message or self.noise.search(message):
                return False
            # A handler's message about its request does not name it.
            frame = sys._getframe()
            for _ in range(40):
                if frame is None:
                    break
                request = getattr(frame.f_locals.get("self"), "request", None)
                if self.mark in str(getattr(request, "uri", "")):
                    return False
                frame = frame.f_back
        except Exception:
            pass
        return True


for _name in ("ServerApp", "LabApp", "NotebookApp", "JupyterNotebookApp", "tornado.access", "tornado.application", "tornado.general"):
    logging.getLogger(_name).addFilter(_Quiet())
