"""A message that reaches a session while it is removed, on real gateways: the conversation stays in one piece.

Whichever of the two comes first, what a person sees afterwards, after one more call of ours, is one conversation with
all that was ever said: live, or removed and whole once it is restored. ``SM_GATEWAY_MESSAGES`` says how many messages
each version gets that are aimed at a removal by the clock.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from conversations import Conversation, Fate, Template, fate
from gateway_model import GatewayModel, gateway_model
from real_gateway import VERSIONS, Gateway
from support import Skill, now_ms

from session_manager.core.errors import Refused
from session_manager.files import steps
from session_manager.functions import load
from session_manager.functions.context import Context
from session_manager.settings import read_settings
from session_manager.stores.openclaw_files.volume import Volume

pytestmark = pytest.mark.system

MESSAGES = int(os.environ.get("SM_GATEWAY_MESSAGES", "40"))
SPREAD_S = 0.3
BATCH = 5
# Younger than 30 days: 2026.6.11 removes what is older by itself.
OLD_MINUTES = 20_000
# Long enough for a gateway to have read the index, or to have written it where it waits for no lock.
READING_S = 0.15
# So long after a message our calls wait for its run to show, before they join two halves.
SETTLED_S = 3.2


CLOCK = [OLD_MINUTES - 10.0 * batch for batch in range(MESSAGES // 2 // BATCH) for _ in range(BATCH)]
STEPS = [OLD_MINUTES - 10.0 * number for number in range(25)]
# Each test has an agent of its own, whose sessions are that old.
AGENTS = {
    "prune-clock": CLOCK,
    "delete-clock": CLOCK,
    "prune-steps": STEPS,
    "delete-steps": STEPS,
    "noted": STEPS[:3],
    "thinking": STEPS[:1],
    "forced": STEPS[:1],
}


class Place(NamedTuple):
    """A running gateway, what it talks to, and its old conversations by agent."""

    gateway: Gateway
    model: GatewayModel
    talks: dict[str, list[Conversation]]

    @property
    def skill(self) -> Skill:
        return Skill(self.gateway.agents)

    def none_is_split(self, talks: list[Conversation]) -> list[Fate]:
        """Makes one more call, and looks at what became of each."""
        agent = talks[0].agent
        self.gateway.wait_until_quiet(agent, SETTLED_S)
        answer = self.skill("prune_sessions", {"max_age_minutes": 10 * OLD_MINUTES, "agent": agent})
        assert answer.exit_code == 0, answer.document
        fates = [fate(self.gateway, self.skill, talk) for talk in talks]
        counts = Counter(f.what + (" WRONG" if f.wrong else "") for f in fates)
        wrong = [f"{f.conversation.key} {f.what}: {f.wrong}; shown {f.shown}" for f in fates if f.wrong]
        print(self.gateway.version, agent, dict(counts))
        assert not wrong, "\n".join([str(counts), *wrong])
        return fates


@pytest.fixture(scope="module", params=VERSIONS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with gateway_model() as model:
        gateway = Gateway(request.param, tmp_path_factory.mktemp("gateway"), model.url, tuple(AGENTS))
        with gateway.started():
            template = Template.of(gateway)
        talks = {agent: template.fill(gateway, agent, ages) for agent, ages in AGENTS.items()}
        with gateway.started():
            yield Place(gateway, model, talks)


# By the clock.


def aimed(at: float, offset_s: float, what: Callable[..., None], *arguments: Any) -> None:
    """Does something that long before or after a moment."""
    time.sleep(max(0.0, at + offset_s - time.monotonic()))
    what(*arguments)


def by_prune(skill: Skill, agent: str, minutes: float) -> None:
    """Takes what nobody has spoken to for so long."""
    answer = skill("prune_sessions", {"max_age_minutes": int(minutes), "agent": agent})
    assert answer.exit_code == 0, answer.document


def by_delete(skill: Skill, talk: Conversation) -> None:
    """Takes one session, or is refused while a run of it is on."""
    answer = skill("delete_session", {"session_id": talk.id})
    assert answer.exit_code in (0, 4), answer.document


def race(place: Place, batch: list[Conversation], minutes: float, how: str) -> None:
    """One message for each session of a batch and the removal of all, within 0.3 s of the same moment."""
    chance = random.Random(batch[0].key)
    at = time.monotonic() + SPREAD_S + 0.05
    done: list[Future[None]] = []
    with ThreadPoolExecutor(2 * BATCH) as pool:
        for talk in batch:
            offset_s = chance.uniform(-SPREAD_S, SPREAD_S)
            done.append(pool.submit(aimed, at, offset_s, talk.say, place.gateway, talk.word))
        if how == "prune":
            done.append(pool.submit(aimed, at, 0, by_prune, place.skill, batch[0].agent, minutes - 1))
        else:
            done += [pool.submit(aimed, at, chance.uniform(-0.1, 0.1), by_delete, place.skill, talk) for talk in batch]
        for each in done:
            each.result()


@pytest.mark.parametrize("how", ["prune", "delete"])
def test_a_message_at_about_the_moment_of_a_removal_splits_no_conversation(place: Place, how: str) -> None:
    talks = place.talks[f"{how}-clock"]
    for first in range(0, len(talks), BATCH):
        race(place, talks[first : first + BATCH], CLOCK[first], how)
    place.none_is_split(talks)


# By events.


def remove(place: Place, how: str, talk: Conversation, minutes: float, at_step: Callable[[str], None]) -> None:
    """A removal in this process, watched."""
    settings = read_settings({"ARIA_AGENTS_DIR": str(place.gateway.agents), "ARIA_API_URL": ""})
    function = load("prune_sessions" if how == "prune" else "delete_session")
    given = {"max_age_minutes": int(minutes) - 1} if how == "prune" else {"session_id": talk.id}
    arguments = function.arguments(agent=talk.agent, **given)
    steps.watcher = at_step
    try:
        with contextlib.suppress(Refused):
            function.run(Context(settings, Volume(str(place.gateway.agents)), now_ms), arguments)
    finally:
        steps.watcher = None


@pytest.mark.parametrize("how", ["prune", "delete"])
def test_a_message_at_any_step_of_a_removal_splits_no_conversation(place: Place, how: str) -> None:
    talks = place.talks[f"{how}-steps"]
    seen: list[str] = []
    remove(place, how, talks[0], STEPS[0], seen.append)
    names = list(dict.fromkeys(seen))
    assert 5 < len(names) < len(talks)

    for name, talk, minutes in zip(names, talks[1:], STEPS[1:], strict=False):

        def speak(step: str, name: str = name, talk: Conversation = talk) -> None:
            if step == name and not talk.new:
                talk.begin(place.gateway, talk.word)
                time.sleep(READING_S)

        remove(place, how, talk, minutes, speak)
        assert talk.new, f"the removal did not come to {name}"
        talk.finish(place.gateway)
    place.none_is_split(talks[: len(names) + 1])


def test_a_removal_between_the_gateways_note_of_a_message_and_its_run_splits_no_conversation(place: Place) -> None:
    """Then the gateway holds no lock, and the entry says nothing of a run yet."""
    for talk in place.talks["noted"]:
        before = place.gateway.index(talk.agent)[talk.key]["updatedAt"]
        talk.begin(place.gateway, talk.word)
        while place.gateway.index(talk.agent)[talk.key]["updatedAt"] == before:
            time.sleep(0.002)
        by_delete(place.skill, talk)
        talk.finish(place.gateway)
    place.none_is_split(place.talks["noted"])


def begin_to_think(place: Place, talk: Conversation) -> None:
    """Says a word to which the model does not reply yet."""
    place.model.hold(talk.word)
    talk.begin(place.gateway, talk.word)
    assert place.model.wait_for(talk.word) == [*talk.words, talk.word]


def test_a_session_whose_model_is_thinking_is_not_removed(place: Place) -> None:
    (talk,) = place.talks["thinking"]
    begin_to_think(place, talk)
    refused = place.skill("delete_session", {"session_id": talk.id})
    assert (refused.exit_code, refused.document["code"]) == (4, "session_busy")
    waited = place.skill("cleanup_after_delegation", {"session_id": talk.id, "wait_seconds": 1})
    assert (waited.exit_code, waited.document["code"]) == (4, "session_busy")
    place.model.let_go(talk.word)
    talk.finish(place.gateway)
    assert place.none_is_split([talk])[0].what == "live"


def test_what_is_said_after_a_forced_removal_goes_with_the_session(place: Place) -> None:
    """2026.2.17 writes the reply into a file of its own; 2026.6.11 ends the run in an error."""
    (talk,) = place.talks["forced"]
    begin_to_think(place, talk)
    removed = place.skill("delete_session", {"session_id": talk.id, "force": True})
    assert removed.exit_code == 0, removed.document
    place.model.let_go(talk.word)
    talk.finish(place.gateway, may_fail=True)
    assert place.none_is_split([talk])[0].what == "removed"
