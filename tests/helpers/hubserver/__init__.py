"""A Hugging Face Hub on loopback, for tests: dataset repositories over the Hub's HTTP API.

It keeps what it is sent and knows of nothing but repositories. What it can do wrong, and when, is
set by ``Fault``. ``python -m hubserver`` (in the folder of the tests) runs one by itself.

The client decides alone whether it uploads through Xet (it does where hf_xet is installed, unless
HF_HUB_DISABLE_XET is set), so tests set that. What may be read through it is told by ``offer_xet``.
"""

from hubserver.faults import Fault, Request
from hubserver.server import HubServer
from hubserver.state import Refusal, Repository

__all__ = ["Fault", "HubServer", "Refusal", "Repository", "Request"]
