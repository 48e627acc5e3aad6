"""LoRA beside QLoRA in one sweep."""

from pathlib import Path

import pytest

from runs import write_weather
from sweep_runs import go, shared


@pytest.mark.usefixtures("cells_here")
def test_the_untouched_model_of_each_base_is_its_own(tiny_llama: Path, tmp_path: Path) -> None:
    data = write_weather(tmp_path / "weather.jsonl", 40)
    values = shared(data, tiny_llama, rung="llm-lora,llm-qlora", lora_alpha="0,8", epochs="1")
    record = go(values | {"r": "2"}, tmp_path / "out")
    assert [cell["status"] for cell in record["cells"]] == ["done"] * 4
    names = [cell["name"] for cell in record["cells"]]
    assert [name.startswith("llm-qlora-r2-alpha") for name in names] == [False, False, True, True]
    lora, qlora = (record["cells"][at]["perplexity"]["before"] for at in (0, 2))
    assert abs(lora - qlora) > 1e-3 * lora
    assert len(list((tmp_path / "out" / "untouched").glob("*.json"))) == 2
    norms = [cell["weights"]["update_norm"] for cell in record["cells"]]
    assert [norm > 0 for norm in norms] == [False, True, False, True]
