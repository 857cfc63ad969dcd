"""A Kafka broker with an encrypted listener beside the plain one, by which only the test's own hands come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from deploy.kafka.broker import Broker, BrokerUnavailableError
from tests.api.conftest import free_port
from tests.certificates import Authority
from tests.servers import unavailable


@contextmanager
def secured_broker(
    directory: Path, trusted: Authority, *, protocol: str, users: Mapping[str, str] | None = None
) -> Iterator[tuple[Broker, str]]:
    """A running broker and the address of its listener that speaks SSL or SASL_SSL.

    With users, they authenticate by SCRAM-SHA-512 and may do nothing that no ACL allows.
    """
    certificate, key = trusted.sign("kafka")
    store = certificate.with_suffix(".keystore")
    store.write_text(key.read_text("utf-8") + certificate.read_text("utf-8"), "utf-8")
    plain, encrypted, controller = free_port(), free_port(), free_port()
    listeners = f"PLAINTEXT://127.0.0.1:{plain},SECURED://127.0.0.1:{encrypted}"
    properties = {
        "listeners": f"{listeners},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": listeners,
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listener.security.protocol.map": f"CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SECURED:{protocol}",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(store),
    }
    if users:
        module = "org.apache.kafka.common.security.scram.ScramLoginModule"
        properties |= {
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.secured.scram-sha-512.sasl.jaas.config": f"{module} required;",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",  # whoever comes by the plain listeners
        }
    broker = Broker(directory / "broker", port=plain, properties=properties, users=users)
    try:
        broker.start()
    except BrokerUnavailableError as error:
        unavailable("Kafka", str(error))
    try:
        yield broker, f"127.0.0.1:{encrypted}"
    finally:
        broker.stop()
