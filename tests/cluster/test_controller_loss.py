from __future__ import annotations

from shardserve.cluster.controller_loss import OVER_SECONDS, Contact, missed


def test_a_controller_that_ray_knows_is_waited_for_for_ever() -> None:
    contact = Contact()
    for now in (0.0, 10 * OVER_SECONDS, 20 * OVER_SECONDS):
        contact = missed(contact, now, is_known=True)
        assert contact.is_lost
        assert not contact.is_over(now)


def test_a_run_is_over_when_ray_has_known_no_controller_for_some_time() -> None:
    contact = missed(Contact(), 5.0, is_known=False)
    assert not contact.is_over(5.0)
    contact = missed(contact, OVER_SECONDS, is_known=False)
    assert not contact.is_over(OVER_SECONDS)
    assert contact.is_over(5.0 + OVER_SECONDS)


def test_one_that_ray_knows_again_has_all_the_time_again() -> None:
    contact = missed(Contact(), 0.0, is_known=False)
    contact = missed(contact, 1.0, is_known=True)
    contact = missed(contact, 2.0, is_known=False)
    assert not contact.is_over(OVER_SECONDS)
    assert contact.is_over(2.0 + OVER_SECONDS)
