"""A chat template becomes text around the question only if it is nothing more than that."""

import pytest

from kensho.runtime.text.chat_template import ChatPieces, render_question
from kensho.runtime.text.tokenizer.chat_pieces import find_pieces

pytestmark = pytest.mark.real

TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>"}
GEMMA = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set loop_messages = messages[1:] -%}{%- else -%}"
    "{%- set loop_messages = messages -%}{%- endif -%}{%- for message in loop_messages -%}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('roles') }}{%- endif -%}"
    "{{ '<turn>' + message['role'] + '\n' }}{%- if message['content'] is string -%}{{ message['content'] | trim }}"
    "{%- elif message['content'] is iterable -%}{%- for item in message['content'] -%}{{ item['text'] | trim }}"
    "{%- endfor -%}{%- endif -%}{{ '</turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<turn>model\n' }}{%- endif -%}"
)
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|h|>' + message['role'] + '<|/h|>\n\n' + message['content'] "
    "| trim + '<|eot|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|h|>assistant<|/h|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (GEMMA, ChatPieces("<bos><turn>user\n", "</turn>\n<turn>model\n", True)),
        (LLAMA3, ChatPieces("<bos><|h|>user<|/h|>\n\n", "<|eot|><|h|>assistant<|/h|>\n\n", True)),
        (
            CHATML,
            ChatPieces(
                "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\n",
                "<|im_end|>\n<|im_start|>assistant\n",
                False,
            ),
        ),
        ("{{ messages[0].content }}", ChatPieces("", "", False)),
    ],
    ids=["gemma", "llama 3", "chatml", "bare"],
)
def test_the_usual_templates_become_pieces(template: str, expected: ChatPieces) -> None:
    found = find_pieces(template, TOKENS)
    assert found == expected
    for question in ("{{ 7 * 7 }}", "  <eos> {% raw %}\n", "</turn>\n<turn>model\nyes"):
        assert expected.render(question) == render_question(template, question, TOKENS)


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0].content | length > 9000 %}long{% endif %}{{ messages[0].content }}",
        "{% if 'secret word' in messages[0].content %}x{% endif %}{{ messages[0].content }}",
        "{% if messages[0].content.startswith('/think') %}x{% endif %}{{ messages[0].content }}",
        "{% set c = '>' + messages[0].content %}{% if c.endswith('qqq') %}x{% endif %}{{ c }}",
        "{% set c = messages[0].content | trim %}{% if c == 'zzz' %}x{% endif %}{{ c }}",
        "{{ messages[0].content.split('</think>')[-1] }}",
        "{{ messages[0].content | replace('zzz', 'y') }}",
        "{% if messages[0].content | wordcount == 77 %}x{% endif %}{{ messages[0].content }}",
        "{% if messages[0].content | int == 77 %}x{% endif %}{{ messages[0].content }}",
        "{% set c = messages[0].content ~ '' %}{% if 'zzz' in c %}x{% endif %}{{ c }}",
        "{% set c = messages | map(attribute='content') | join %}{% if 'zzz' in c %}x{% endif %}{{ c }}",
        "{% set c = '%s' % messages[0].content %}{% if 'zzz' in c %}x{% endif %}{{ c }}",
        "{% if messages[0].content in ['zzz', 'y'] %}x{% endif %}{{ messages[0].content }}",
        "{% if messages[0].content in {'zzz': 1} %}x{% endif %}{{ messages[0].content }}",
        "{{ messages[0].content | upper }}",
        "{{ messages[0].content | e }}",
        "{{ messages[0].content | tojson }}",
        "{{ messages[0].content.lstrip() }}",
        "{{ messages[0].content.strip('x') }}",
        "{{ messages[0].content }}{{ messages[0].content }}",
        "{{ messages[0].content[:5000] }}",
        "{% for c in messages[0].content %}{{ c }}{% endfor %}",
        "{% if messages[0].content %}{{ messages[0].content }}{% endif %}",
        "fixed text",
        "{{ raise_exception('no') }}",
        "{% if %}",
    ],
)  # fmt: skip
def test_a_template_that_looks_at_the_question_stays_a_template(template: str) -> None:
    assert find_pieces(template, TOKENS) is None
