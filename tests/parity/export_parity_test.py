"""An exported folder as transformers sees it: the same logits, continuations, token ids; and back again, bitwise."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
import transformers
from flax import nnx

from cometjax import checkpoints, export, safetensors_files
from cometjax.huggingface import to_hf_state
from cometjax.model import Decoder
from cometjax.train import train
from data_pipeline.vocabulary import PAD, TIMELINE_END, Vocabulary
from tests.cometjax import tiny_run

STEPS = 120
CONFIGS = {
    "tied": {},
    "untied, another rotary base": {"tied_embeddings": False, "rope_theta": 5e5, "layers": 2},
    "mup": {"parameterization": "mup", "mup_base_width": 16},
    "bfloat16 parameters": {"param_dtype": "bfloat16"},
}


@pytest.fixture(scope="module", params=list(CONFIGS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(folder, our model, vocabulary) of a run of 120 steps."""
    folder = tmp_path_factory.mktemp("export")
    tiny_run.write_corpus(folder / "corpus")
    config = tiny_run.config_of(folder, steps=STEPS, eval_every=STEPS, checkpoint_every=STEPS)
    config.model.update(CONFIGS[request.param])
    train(config, folder / "run", progress=False)
    # Small enough files that there are several.
    export.export(folder / "run", folder / "hf", max_file_bytes=20_000)
    model, vocabulary, *_ = checkpoints.load_for_inference(folder / "run")
    return folder / "hf", model, vocabulary


@nnx.jit
def padded_logits(model: Decoder, tokens_BxL: jax.Array, segment_ids_BxL: jax.Array) -> jax.Array:
    positions_BxL = jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1]), tokens_BxL.shape)
    return model(tokens_BxL, segment_ids_BxL, positions_BxL)


def ours(model: Decoder, tokens_BxL: np.ndarray) -> np.ndarray:
    """Our logits, of rows filled up to 64 so that one shape is compiled."""
    length = tokens_BxL.shape[1]
    row_BxL = np.pad(tokens_BxL, ((0, 0), (0, 64 - length)))
    segments_BxL = np.broadcast_to(np.arange(64) < length, row_BxL.shape)
    return np.asarray(padded_logits(model, jnp.asarray(row_BxL), jnp.asarray(segments_BxL, jnp.int32)))[:, :length]


def prompts(vocabulary: Vocabulary) -> np.ndarray:
    """Twelve short timelines: walks round the labs with strides of 1 to 3, as in training."""
    starts_B, strides_B = np.repeat(np.arange(0, 12, 3), 3), np.tile([1, 2, 3], 4)
    labs_Bx6 = 6 + (starts_B[:, None] + strides_B[:, None] * np.arange(6)) % 12
    pairs = np.stack([labs_Bx6, np.full_like(labs_Bx6, vocabulary.interval_ids[0])], axis=2).reshape(12, 12)
    return np.concatenate([np.tile([2, 3, 4, 5], (12, 1)), pairs], axis=1)


def test_logits_are_equal(exported) -> None:
    folder, model, vocabulary = exported
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert type(theirs) is transformers.Qwen2ForCausalLM
    tokens_BxL = np.random.default_rng(0).integers(0, len(vocabulary), (3, 60))
    with torch.no_grad():
        logits = theirs(input_ids=torch.from_numpy(tokens_BxL)).logits.numpy()
    assert logits.std() > 0.3
    np.testing.assert_allclose(ours(model, tokens_BxL), logits, rtol=1e-4, atol=1e-4)


def test_greedy_continuations_are_identical(exported) -> None:
    folder, model, vocabulary = exported
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens_BxL = prompts(vocabulary)
    got = theirs.generate(torch.from_numpy(tokens_BxL), do_sample=False, min_new_tokens=40, max_new_tokens=40).numpy()
    for _ in range(40):
        logits_BxV = ours(model, tokens_BxL)[:, -1]
        second_B, first_B = np.sort(logits_BxV).T[-2:]
        assert (first_B - second_B > 1e-4).all(), "a tie: the greedy token is not defined"
        tokens_BxL = np.concatenate([tokens_BxL, logits_BxV.argmax(-1)[:, None]], axis=1)
    assert got.shape == tokens_BxL.shape
    np.testing.assert_array_equal(got, tokens_BxL)
    assert len(np.unique(got[:, 16:])) > 1


def test_sampling_is_of_the_whole_distribution_until_the_timeline_ends(exported) -> None:
    folder, _, vocabulary = exported
    settings = transformers.AutoModelForCausalLM.from_pretrained(folder).generation_config
    assert (settings.do_sample, settings.temperature, settings.top_k, settings.top_p) == (True, 1.0, 0, 1.0)
    assert (settings.pad_token_id, settings.eos_token_id) == (PAD, vocabulary.ids[TIMELINE_END])


def test_transformers_writes_back_the_tensors_that_it_read_and_we_read_them(exported, tmp_path: pathlib.Path) -> None:
    folder, model, _ = exported
    transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    again = safetensors_files.read(tmp_path)
    for name, tensor in to_hf_state(model).items():
        assert again[name].dtype == tensor.dtype
        np.testing.assert_array_equal(again[name], tensor, err_msg=name)


def test_the_library_reads_our_files_and_we_read_its(exported, tmp_path: pathlib.Path) -> None:
    folder, model, _ = exported
    state, files = to_hf_state(model), sorted(folder.glob("*.safetensors"))
    assert len(files) > 1
    found = {}
    for file in files:
        with safetensors.safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(found[name].to(torch.float32).numpy(), tensor.astype(np.float32), err_msg=name)
    floats = {name: np.ascontiguousarray(tensor.astype(np.float32)) for name, tensor in state.items()}
    safetensors.numpy.save_file(floats, tmp_path / safetensors_files.SINGLE)
    for name, tensor in safetensors_files.read(tmp_path).items():
        np.testing.assert_array_equal(tensor, floats[name], err_msg=name)


def test_the_tokenizer_maps_every_token_to_its_id_and_back(exported) -> None:
    folder, _, vocabulary = exported
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    check_tokenizer(tokenizer, vocabulary)


def test_the_class_of_the_folder_is_the_same_tokenizer(exported) -> None:
    folder, _, vocabulary = exported
    check_tokenizer(transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True), vocabulary)


def test_texts_with_spaces_and_signs_are_single_tokens(tmp_path: pathlib.Path, mimic_demo_vocabulary) -> None:
    from cometjax import hf_tokenizer

    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    hf_tokenizer.write(tmp_path, mimic_demo_vocabulary, max_positions=64)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert any(" " in token.text for token in mimic_demo_vocabulary.tokens)
    check_tokenizer(tokenizer, mimic_demo_vocabulary)


@pytest.fixture(scope="module")
def mimic_demo_vocabulary(mimic_demo: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    from data_pipeline import build_config, corpus
    from data_pipeline.build import build_corpus

    config = build_config.get_config()
    config.code_map = "mimic"
    root = tmp_path_factory.mktemp("mimic") / "corpus"
    build_corpus(mimic_demo, root, config, workers=1)
    return corpus.Corpus.open(root).vocabulary


def check_tokenizer(tokenizer: transformers.PreTrainedTokenizerBase, vocabulary: Vocabulary) -> None:
    texts = [token.text for token in vocabulary.tokens]
    texts[PAD] = "<PAD>"
    ids = list(range(len(texts)))
    assert tokenizer.convert_tokens_to_ids(texts) == ids
    assert tokenizer.convert_ids_to_tokens(ids) == texts
    assert tokenizer("\n".join(texts)).input_ids == ids
    assert tokenizer.decode(ids) == "\n".join(texts)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (PAD, vocabulary.ids[TIMELINE_END])
    assert len(tokenizer) == len(texts)
    padded = tokenizer([texts[3], "\n".join(texts[3:5])], padding=True)
    assert padded.input_ids == [[PAD, 3], [3, 4]] and padded.attention_mask == [[0, 1], [1, 1]]
    with pytest.raises(Exception, match="WordLevel error"):
        tokenizer("NO//SUCH TOKEN")


def test_the_precision_is_that_of_training(exported) -> None:
    folder, model, _ = exported
    dtype = {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert {str(parameter.dtype).removeprefix("torch.") for parameter in loaded.parameters()} == dtype
