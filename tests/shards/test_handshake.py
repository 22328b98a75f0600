"""Both ends prove themselves, or nobody gets in."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserve.batching.errors import (
    FailedPrecondition,
    InvalidArgument,
    ServingError,
    Unauthenticated,
)
from shardserve.shards.frames import Frame, FrameReader, Kind, bare_frame, unpack
from shardserve.shards.handshake import (
    FINGERPRINT_LIMIT,
    HANDSHAKE_FRAME_BYTES,
    NONCE_BYTES,
    ClientHandshake,
    Credentials,
    ServerHandshake,
    refusal,
)

SECRET = b"a secret that nobody else knows"
HERE = Credentials(SECRET, "plan/0")
LIMIT = 1 << 20


def read(data: bytes) -> Frame:
    """The frame, through a reader that takes no more than a stranger may send."""
    reader = FrameReader(Kind, HANDSHAKE_FRAME_BYTES)
    reader.get_buffer()[: len(data)] = data
    (only,) = reader.received(len(data))
    return only


def client(credentials: Credentials = HERE, nonce: bytes = b"c" * NONCE_BYTES) -> ClientHandshake:
    return ClientHandshake(credentials, LIMIT, nonce)


def server(credentials: Credentials = HERE, nonce: bytes = b"s" * NONCE_BYTES) -> ServerHandshake:
    return ServerHandshake(credentials, 2 * LIMIT, nonce)


def converse(router: ClientHandshake, shard: ServerHandshake) -> list[bytes]:
    """Everything that was said, in order, to the end."""
    said = [router.hello()]
    while said[-1]:
        speaker = shard if len(said) % 2 else router
        said.append(speaker.receive(read(said[-1])))
    return said[:-1]


fingerprints = st.text(max_size=20)
secrets = st.binary(min_size=16, max_size=64)


@given(secrets, fingerprints)
def test_ends_with_equal_credentials_learn_each_others_limits(secret: bytes, plan: str) -> None:
    router, shard = client(Credentials(secret, plan)), server(Credentials(secret, plan))
    converse(router, shard)
    assert router.peer_limit == 2 * LIMIT
    assert shard.peer_limit == LIMIT


def test_the_secret_is_never_said_nor_shown() -> None:
    assert SECRET.decode() not in repr(HERE)
    assert all(SECRET not in said for said in converse(client(), server()))
    with pytest.raises(Unauthenticated) as caught:
        converse(client(), server(Credentials(SECRET[::-1], "plan/0")))
    assert SECRET not in refusal(caught.value)


def test_a_router_with_another_secret_is_turned_away() -> None:
    shard = server()
    with pytest.raises(Unauthenticated, match="the router could not prove"):
        converse(client(Credentials(b"x" * 16, "plan/0")), shard)
    assert shard.peer_limit is None


def test_a_shard_that_only_pretends_to_know_the_secret_is_found_out() -> None:
    router = client()
    router.hello()
    router.receive(read(bare_frame(Kind.CHALLENGE, 0, b"s" * NONCE_BYTES, LIMIT)))
    with pytest.raises(Unauthenticated, match="the server could not prove"):
        router.receive(read(bare_frame(Kind.WELCOME, 0, bytes(32))))
    assert router.peer_limit is None


def test_a_proof_cannot_be_reflected() -> None:
    router = client(nonce=b"n" * NONCE_BYTES)
    router.hello()
    challenge = bare_frame(Kind.CHALLENGE, 0, b"n" * NONCE_BYTES, LIMIT)
    proof, _ = unpack(read(router.receive(read(challenge)))[2])
    with pytest.raises(Unauthenticated):
        router.receive(read(bare_frame(Kind.WELCOME, 0, proof)))


def test_a_conversation_cannot_be_replayed() -> None:
    said = converse(client(), server())
    shard = server(nonce=b"t" * NONCE_BYTES)
    shard.receive(read(said[0]))
    with pytest.raises(Unauthenticated):
        shard.receive(read(said[2]))


@pytest.mark.parametrize(
    "hello",
    [
        bare_frame(Kind.HELLO, 0, b"d" * NONCE_BYTES, LIMIT),
        bare_frame(Kind.HELLO, 0, b"c" * NONCE_BYTES, LIMIT + 8),
    ],
    ids=["nonce", "limit"],
)
def test_who_changes_what_is_said_on_the_way_is_found_out(hello: bytes) -> None:
    router, shard = client(), server()
    router.hello()
    proof = router.receive(read(shard.receive(read(hello))))
    with pytest.raises(Unauthenticated):
        shard.receive(read(proof))


def test_a_router_of_another_plan_is_told_both() -> None:
    with pytest.raises(FailedPrecondition, match=r"serves 'plan/0', not 'plan/1'"):
        converse(client(Credentials(SECRET, "plan/1")), server())


def test_the_longest_fingerprints_fit() -> None:
    longest = Credentials(SECRET, "é" * (FINGERPRINT_LIMIT // 2))
    converse(client(longest), server(longest))
    with pytest.raises(FailedPrecondition) as caught:
        converse(client(longest), server())
    assert read(refusal(caught.value))[0] is Kind.REFUSAL


def test_credentials_that_cannot_work_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="at least 16 bytes") as caught:
        Credentials(b"short secret", "plan")
    assert "short" not in str(caught.value)
    with pytest.raises(InvalidArgument, match="at most 256 bytes"):
        Credentials(SECRET, "x" * 257)


def test_a_refusal_comes_out_as_the_error_it_was() -> None:
    router = client()
    router.hello()
    with pytest.raises(FailedPrecondition, match="refused by the server: other plan"):
        router.receive(read(refusal(FailedPrecondition("other plan"))))


frames = st.one_of(
    st.builds(
        lambda kind, fields: bare_frame(kind, 0, *fields),
        st.sampled_from([Kind.HELLO, Kind.CHALLENGE, Kind.PROOF, Kind.WELCOME, Kind.REFUSAL]),
        st.lists(
            st.integers(0, 2**64 - 1) | st.binary(max_size=40) | st.text(max_size=9), max_size=3
        ),
    ),
    st.builds(
        lambda limit: bare_frame(Kind.HELLO, 0, b"c" * NONCE_BYTES, limit),
        st.integers(0, 2**64 - 1),
    ),
)


@given(st.lists(frames, min_size=1, max_size=3), st.booleans())
def test_no_other_frames_let_anybody_in(said: list[bytes], to_shard: bool) -> None:
    listener: ServerHandshake | ClientHandshake = server() if to_shard else client()
    with suppress(ServingError):
        for one in said:
            listener.receive(read(one))
    assert listener.peer_limit is None
