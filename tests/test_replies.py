"""What OpenAI-compatible servers send, in every form that is known of them, and in some that nobody should send."""

import json

import pytest

from vlaad_ray.annotate import replies

ANSWER = '{"description": "pulling the drawer"}'
HALF_A_PAIR = "\ud83d"


def completion(message, finish="stop", **more):
    """The body of a chat completion."""
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 4}, **more}).encode()


def read(body, status=200):
    return replies.read(status, body)


@pytest.mark.parametrize(
    "message",
    [
        {"content": ANSWER},
        {"content": [{"type": "text", "text": ANSWER}]},
        {"content": [{"type": "text", "text": ANSWER[:9]}, {"type": "text", "text": ANSWER[9:]}]},
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "{}"}]},
                {"type": "text", "text": ANSWER},
            ]
        },
        {"content": [ANSWER]},
        {"content": None, "reasoning_content": ANSWER},
        {"content": "", "reasoning": f"{ANSWER}\n"},
        {"content": ANSWER, "reasoning_content": "the drawer is open", "refusal": None, "tool_calls": []},
    ],
    ids=lambda message: json.dumps(message)[:60],
)
def test_content_in_parts_or_in_the_reasoning_is_the_answer(message):
    """A list of parts raised TypeError, and the job was lost."""
    reply = read(completion(message))
    assert (reply.text, reply.problem, reply.finish) == (ANSWER, "", "stop")
    assert (reply.prompt_tokens, reply.generated_tokens) == (9, 4)


@pytest.mark.parametrize(
    ("body", "problem", "says"),
    [
        (completion({"content": None, "refusal": "I can't help"}), "refused", "I can't help"),
        (completion({"content": [{"type": "refusal", "refusal": "I won't"}]}), "refused", "I won't"),
        (completion({"content": ""}, finish="content_filter"), "refused", '"content": ""'),
        (completion({"content": None, "reasoning_content": f"perhaps {ANSWER}"}), "no text", "perhaps"),
        (completion({"content": None, "tool_calls": [{"function": {"name": "f"}}]}), "no text", "tool_calls"),
        (completion({"content": 7}), "no text", "7"),
        (completion({"content": ANSWER}, finish="length"), "cut off", "pulling"),
        (completion({"content": None, "reasoning": "let me see"}, finish="length"), "cut off", "let me see"),
        (b'{"choices": [], "usage": null}', "server error", '"choices": []'),
        (b'{"choices": null}', "server error", "choices"),
        (b'{"choices": [{"message": null}]}', "server error", "message"),
        (b'{"choices": [null]}', "server error", "[null]"),
        (b'{"error": {"message": "overloaded", "code": 503}}', "server error", "overloaded"),
        (b'{"object": "error", "message": "no such model"}', "server error", "no such model"),
        (b'{"choices": [{"error": {"message": "upstream"}, "message": {"content": ""}}]}', "server error", "upstream"),
        (b'{"error": "This model\'s maximum context length is 17 tokens"}', "prompt too long", "maximum context"),
        (b"<html><h1>Bad gateway</h1></html>", "server error", "Bad gateway"),
        (b"", "server error", "nothing, with HTTP status 200"),
        (b"null", "server error", "null"),
        (b"[1]", "server error", "[1]"),
        (b"[" * 100_000, "server error", "[[["),
        (b"\xff\xfe{", "server error", "{"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_what_holds_no_answer_is_counted_and_its_first_words_kept(body, problem, says):
    reply = read(body)
    assert reply.problem == problem
    assert says in reply.text
    assert "\n" not in reply.text and len(reply.text) <= replies.FIRST_WORDS


def test_an_error_with_an_error_status_is_one_whatever_else_is_in_it():
    assert read(completion({"content": ANSWER}), status=400).problem == "server error"


@pytest.mark.parametrize("usage", [None, [], {"prompt_tokens": None}, {"prompt_tokens": "9"}, {"prompt_tokens": -1}])
def test_tokens_that_are_not_told_are_none(usage):
    reply = read(completion({"content": ANSWER}, usage=usage))
    assert (reply.text, reply.prompt_tokens, reply.generated_tokens) == (ANSWER, 0, 0)


def test_half_a_surrogate_pair_can_be_stored():
    """A picture character cut in two: Arrow cannot store it, and the whole job would stop."""
    reply = read(completion({"content": f"a{HALF_A_PAIR}{ANSWER}"}))
    assert replies.json_object(reply.text.encode().decode()) == ANSWER
    assert read(completion({"content": None, "refusal": HALF_A_PAIR})).text.encode()


@pytest.mark.parametrize(
    "text",
    [
        ANSWER,
        f"```json\n{ANSWER}\n```",
        f"```\n{ANSWER}\n```\n",
        f"Here is the JSON:\n\n{ANSWER}\n\nI hope that helps {{!",
        f'<think>is it {{}}, or {{"description": "no"}}?</think>\n{ANSWER}',
        f"the hand rests.</think>{ANSWER}",
        f'First I thought {{"description": "grasping the drawer"}}, but: {ANSWER}',
        f"{ANSWER}<|im_end|>",
        f"[{ANSWER}]",
        f"\ufeff {ANSWER}",
    ],
)
def test_json_in_a_fence_or_between_words_is_found(text):
    """All of them counted as "not JSON", with the advice to raise --max-tokens."""
    assert replies.json_object(text) == ANSWER


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sorry, I cannot see the picture",
        '{"description": "pulling',
        f"<think>perhaps {ANSWER}",
        '{"a":' * 100_000,
        "1" * 5000,
        "{" * 1000,
    ],
    ids=lambda text: text[:20],
)
def test_what_holds_no_json_object_has_none(text):
    """Also what json itself stumbles over: depth, and numbers of thousands of digits."""
    assert replies.json_object(text) is None
