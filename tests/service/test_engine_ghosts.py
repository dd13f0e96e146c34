"""`session-manager ghosts`: empty sessions with owner and creation time, and their end."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from chats import Chats, create, say
from service import Databases, cli


def ghosts(chats: Chats, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = cli("ghosts", *arguments, DATABASE_URL=chats.url)
    assert done.returncode == 0, done.stderr
    return done


def three(client: httpx.Client, chats: Chats) -> tuple[str, str, str]:
    """A ghost of an organisation's member, one of nobody, and one of somebody; oldest first."""
    member = create(client, user_id="ann", org_id="acme", agent_id="analyst", ttl_minutes=600)["id"]
    chats.age(member, 90)
    (nobody,) = chats.empty(minutes=60)
    young = create(client, user_id="ben")["id"]
    chats.age(young, 16)
    used = create(client, user_id="ann")["id"]
    say(client, used)
    chats.age(used, 500)
    create(client)
    return member, nobody, young


def test_opening_a_page_makes_none(client: httpx.Client, chats: Chats) -> None:
    for page in ("/chat", "/chat?session=00000000-0000-4000-8000-000000000000", "/chat.js", "/sessions"):
        assert client.get(page).status_code == 200
    assert chats.counts() == (0, 0)
    assert client.get("/api/engine/sessions/ghosts", params={"older_than_minutes": 0}).json()["total"] == 0


def test_they_are_listed_with_owner_and_creation_time_and_nothing_is_changed(
    client: httpx.Client, chats: Chats
) -> None:
    member, nobody, young = three(client, chats)
    before = chats.ids()
    done = ghosts(chats)
    rows = [line.split("  ") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == [member, nobody, young]
    assert rows[0][2:] == ["analyst", "user ann", "org acme"]
    assert rows[1][3:] == ["nobody's"]
    assert rows[2][3:] == ["user ben"]
    age = datetime.now(UTC) - datetime.strptime(rows[0][1], "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
    assert timedelta(minutes=89) < age < timedelta(minutes=95)
    assert done.stderr == "3 chat sessions without a message, to delete with --delete\n"
    assert chats.ids() == before


def test_delete_deletes_what_was_listed_and_says_which(client: httpx.Client, chats: Chats) -> None:
    listed = three(client, chats)
    before = chats.ids()
    done = ghosts(chats, "--delete")
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(listed)
    assert done.stderr == "3 chat sessions without a message, deleted\n"
    assert chats.ids() == before - set(listed)
    again = ghosts(chats, "--delete")
    assert (again.stdout, again.stderr) == ("", "every chat session older than 15 minutes has a message\n")


def test_json_and_the_age(client: httpx.Client, chats: Chats) -> None:
    member, nobody, young = three(client, chats)
    document = json.loads(ghosts(chats, "--json", "--older-than-minutes", "30").stdout)
    shown = document.pop("ghosts")
    assert document == {"dry_run": True, "older_than_minutes": 30, "ghost_count": 2, "deleted": 0}
    assert [ghost["id"] for ghost in shown] == [member, nobody]
    assert (shown[0]["user_id"], shown[0]["org_id"], shown[0]["agent_id"]) == ("ann", "acme", "analyst")
    assert datetime.fromisoformat(shown[0]["expires_at"]) > datetime.fromisoformat(shown[0]["created_at"])
    assert shown[1]["expires_at"] is None
    document = json.loads(ghosts(chats, "--json", "--delete", "--older-than-minutes", "30").stdout)
    assert (document["dry_run"], document["deleted"], document["ghosts"]) == (False, 2, shown)
    assert young in chats.ids()
    assert not {member, nobody} & chats.ids()


def test_many_are_deleted_in_batches_and_all_are_listed(chats: Chats) -> None:
    ids = chats.empty(5_003)
    document = json.loads(ghosts(chats, "--json", "--delete").stdout)
    assert document["deleted"] == 5_003
    assert {ghost["id"] for ghost in document["ghosts"]} == set(ids)
    assert chats.counts() == (0, 0)


def test_what_another_program_wrote_cannot_steer_the_terminal(chats: Chats, server: Databases) -> None:
    chats.empty()
    with server.connect(chats.url) as connection:
        connection.execute("UPDATE chat_sessions SET agent_id = %s, user_id = %s", ("\x1b[2J", "a\nb"))
    said = ghosts(chats).stdout
    assert "\x1b" not in said
    assert "\\x1b[2J  user a\\nb\n" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("minutes", ["0", "-1", "soon", "5256001"])
def test_an_age_that_is_none_is_refused(chats: Chats, minutes: str) -> None:
    """All of them, also those just made, is what the endpoint alone does."""
    chats.empty()
    done = cli("ghosts", "--delete", "--older-than-minutes", minutes, DATABASE_URL=chats.url)
    assert (done.returncode, done.stdout) == (2, "")
    assert "older-than-minutes" in done.stderr
    assert chats.counts() == (1, 0)


def test_a_database_that_is_not_there_is_one_sentence(server: Databases) -> None:
    url = server.create()
    server.drop(url)
    done = cli("ghosts", "--json", DATABASE_URL=url)
    assert (done.returncode, done.stdout) == (70, "")
    assert done.stderr.startswith("error: the database cannot be reached")
