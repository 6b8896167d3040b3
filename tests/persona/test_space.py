"""From sums to the axis: by hand, against plain loops, on planted truth, and with parts missing."""

import json

import pytest
import torch
from references.directions import axis_cosine_bound
from tolerances import FLOAT32, HEARD

from keel.errors import DataError
from keel.persona.axis import AssistantAxis
from keel.persona.extract import Heard, RoleSums
from keel.persona.outcome import axis_of, summary_of, write_outcome
from keel.persona.space import gathered, space_of
from keel.rng import stream


def heard(means):
    means = torch.as_tensor(means, dtype=torch.float32)
    return Heard(means, torch.full((len(means),), 2), means.norm(dim=-1) * 2)


def role(name, kind, labels, means, layer=0):
    sums = RoleSums(name, kind)
    sums.add(labels, heard(means))
    if kind == "default":
        sums.keep([f"{name}{i}" for i in range(len(labels))], heard(means), layer)
    return sums


def one_block(rows):
    """[N D] at one block."""
    return torch.tensor(rows)[:, None]


BY_HAND = [
    role("default", "default", ["all/even", "all/odd"], one_block([[4.0, 0.0], [6.0, 2.0]])),
    role("poet", "role", ["3/even", "3/odd", "2/even", "0/odd"],
         one_block([[1.0, 1.0], [1.0, 3.0], [3.0, 1.0], [9.0, 9.0]])),
    role("ghost", "role", ["3/even", "3/odd"], one_block([[-1.0, 0.0], [-1.0, 0.0]])),
    role("mute", "role", ["unscored/even", "1/odd"], one_block([[7.0, 7.0], [7.0, 7.0]])),
    role("calm", "trait", ["for/even", "against/even", "alike/odd", "alike/odd"],
         one_block([[2.0, 0.0], [1.0, 0.0], [50.0, 0.0], [0.0, 50.0]])),
]


def test_axis_and_vectors_by_hand():
    """Default (5, 1); poet (1, 2), ghost (-1, 0): role mean (0, 1), axis (5, 0). Odd and even halves likewise."""
    found = gathered(BY_HAND, min_count=1)
    torch.testing.assert_close(found.axis, torch.tensor([[5.0, 0.0]]), **FLOAT32)
    torch.testing.assert_close(found.role_mean, torch.tensor([[0.0, 1.0]]), **FLOAT32)
    assert [(one.name, one.kind, one.n) for one in found.vectors] == [
        ("poet", "fully", 2), ("poet", "somewhat", 1), ("ghost", "fully", 2)]
    assert found.few == ["mute"] and found.n_default == 2
    assert found.counts["poet"] == {"0": 1, "2": 1, "3": 2} and found.counts["mute"] == {"1": 1, "unscored": 1}
    trait, n = found.traits["calm"]
    assert (trait.tolist(), n) == ([[1.0, 0.0]], 1)
    table = space_of(found, 0, rows="fully", scale="as_is").table
    # Even: (4, 0) - ((1, 1) + (-1, 0)) / 2 = (4, -0.5). Odd: (6, 2) - ((1, 3) + (-1, 0)) / 2 = (6, 0.5).
    even, odd = torch.tensor([4.0, -0.5]), torch.tensor([6.0, 0.5])
    assert table["split_half"] == [pytest.approx(float(even @ odd / even.norm() / odd.norm()))]
    assert table["whole_cosine"] == [pytest.approx((2 * table["split_half"][0] / (1 + table["split_half"][0])) ** 0.5)]
    assert {one["name"] + " " + one["kind"]: one["projection"] for one in table["vectors"]} == {
        "poet fully": pytest.approx(1.0), "poet somewhat": pytest.approx(3.0), "ghost fully": pytest.approx(-1.0)}
    assert table["default"]["projection"] == pytest.approx(5.0) and table["role_mean_projection"] == pytest.approx(0.0)
    # The two vectors differ by (2, 2): one component, at 45 degrees to the axis, turned towards it.
    assert table["variance"] == [pytest.approx(1.0)] and table["cosine_pc1"] == [pytest.approx(0.5**0.5)]
    # The default's responses differ by (2, 2) as well; with (2, 1) in place of (2, 2), by 9/2 of 5 along (1, 1).
    assert table["default_explained"] == pytest.approx(1.0)
    found.kept = torch.tensor([[4.0, 0.0], [6.0, 1.0]])
    assert space_of(found, 0, rows="fully", scale="as_is").table["default_explained"] == pytest.approx(0.9)
    found.kept = torch.ones(2, 2)
    assert space_of(found, 0, rows="fully", scale="as_is").table["default_explained"] is None
    assert table["vectors"][0]["coordinates"] == [pytest.approx(2**0.5)]
    assert table["components_for"] == {"0.7": 1, "0.8": 1, "0.9": 1, "0.95": 1}
    assert table["traits"] == [{"name": "calm", "cosine": pytest.approx(1.0), "n": 1}]
    # 4 and 6 are the default's projections: 5 % and 95 % of the way between them.
    assert table["default_range"] == {"low": pytest.approx(4.1), "high": pytest.approx(5.9)}
    lengths = torch.tensor([row for one in BY_HAND for row in [float(one.lengths)]]).sum() / sum(
        one.n_tokens for one in BY_HAND)
    assert table["token_norm"] == [pytest.approx(float(lengths))]


def test_projections_are_told_from_the_mean_of_the_roles():
    """Everything moved by (3, 0): the axis is the same, and only what is raw has moved with it."""
    moved = [role(one.name, one.kind, labels, one_block(rows)) for one, labels, rows in (
        (BY_HAND[0], ["all/even", "all/odd"], [[7.0, 0.0], [9.0, 2.0]]),
        (BY_HAND[1], ["3/even", "3/odd"], [[4.0, 1.0], [4.0, 3.0]]),
        (BY_HAND[2], ["3/even", "3/odd"], [[2.0, 0.0], [2.0, 0.0]]))]
    table = space_of(gathered(moved, min_count=1), 0, rows="fully", scale="as_is").table
    assert table["role_mean_projection"] == pytest.approx(3.0)
    assert [one["projection"] for one in table["vectors"]] == [pytest.approx(1.0), pytest.approx(-1.0)]
    assert table["default"]["projection"] == pytest.approx(5.0)
    assert table["default_range"]["low"] == pytest.approx(7.1)


def test_roles_weigh_the_same_and_a_vector_may_have_just_enough():
    sums = [role("default", "default", ["all/even", "0/odd"], one_block([[4.0, 0.0], [8.0, 0.0]])),
            role("poet", "role", ["3/even"] * 3, one_block([[0.0, 3.0]] * 3)),
            role("ghost", "role", ["3/even"] * 2, one_block([[0.0, 0.0]] * 2))]
    found = gathered(sums, min_count=2)
    torch.testing.assert_close(found.role_mean, torch.tensor([[0.0, 1.5]]), **FLOAT32)
    # Whatever a judge said of the default's responses, all count.
    torch.testing.assert_close(found.axis, torch.tensor([[6.0, -1.5]]), **FLOAT32)


def test_somewhat_vectors_span_the_space_but_do_not_move_the_axis():
    found = gathered(BY_HAND, min_count=1)
    both, fully = (space_of(found, 0, rows=rows, scale="as_is") for rows in ("fully_and_somewhat", "fully"))
    assert (len(both.table["variance"]), len(fully.table["variance"])) == (2, 1)
    assert both.table["axis_norm"] == fully.table["axis_norm"]
    flat = space_of(found, 0, rows="fully_and_somewhat", scale="unit_rows")
    assert flat.table["variance"] != both.table["variance"] and sum(flat.table["variance"]) == pytest.approx(1.0)


@pytest.mark.parametrize("scale", ["as_is", "unit_rows"])
def test_vectors_are_placed_where_the_components_have_them(scale):
    found = gathered(BY_HAND, min_count=1)
    space = space_of(found, 0, rows="fully_and_somewhat", scale=scale)
    placed = torch.tensor([one["coordinates"] for one in space.table["vectors"]])
    torch.testing.assert_close(placed, space.components.coordinates, **FLOAT32)


def test_components_are_those_of_a_plain_decomposition():
    generator = stream(3, "rows")
    rows = torch.randn(6, 10, 2, 5, generator=generator)
    sums = [role("default", "default", ["all/even"] * 4, torch.randn(4, 2, 5, generator=generator))]
    sums += [role(f"r{i}", "role", ["3/even", "3/odd"] * 5, rows[i]) for i in range(6)]
    found = gathered(sums, min_count=10)
    table = space_of(found, 1, rows="fully", scale="as_is").table
    x = rows.mean(1)[:, 1].double()
    x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x)
    assert table["variance"] == pytest.approx((values.flip(0) / values.sum()).tolist()[:5], **_near())
    first = vectors[:, -1] * torch.sign(vectors[:, -1] @ found.axis[1].double())
    for i, one in enumerate(table["vectors"]):
        assert one["coordinates"][0] == pytest.approx(float(x[i] @ first), **_near())
        assert one["cosines"][0] == pytest.approx(float(x[i] @ first / x[i].norm()), **_near())


def _near():
    return {"rel": HEARD["rtol"], "abs": HEARD["atol"]}


@pytest.mark.parametrize("seed", range(3))
def test_the_estimator_recovers_a_planted_direction(seed):
    """h = b_role + s u default + noise: the cosine is at least the analytic one minus 3 %."""
    width, n_roles, n, noise, spread, step = 32, 12, 40, 0.6, 0.25, 1.0
    generator = stream(seed, "planted")
    u = torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)
    sums = []
    for i in range(n_roles + 1):
        base = spread * torch.randn(width, generator=generator) if i else step * u
        means = base + noise * torch.randn(n, width, generator=generator)
        halves = ["even", "odd"] * (n // 2)
        labels = [f"{'3' if i else 'all'}/{half}" for half in halves]
        sums.append(role(f"r{i}" if i else "default", "role" if i else "default", labels, means[:, None]))
    found = gathered(sums, min_count=n)
    expected = axis_cosine_bound(width=width, n_role=n_roles * n, n_default=n, n_roles=n_roles, noise=noise,
                                 spread=spread, step=step)
    assert float(torch.nn.functional.cosine_similarity(found.axis[0], u, dim=0)) >= expected - 0.03


def test_halves_are_left_open_where_they_cannot_be_told():
    found = gathered([role("default", "default", ["all/even"], one_block([[4.0, 0.0]])),
                      role("poet", "role", ["3/even"], one_block([[1.0, 1.0]]))], min_count=1)
    space = space_of(found, 0, rows="fully", scale="as_is")
    assert space.table["split_half"] == [None] and space.table["variance"] == [] and space.table["cosine_pc1"] == [None]
    told = summary_of(found, space)
    assert told["reliability"] is None and told["whole_cosine"] is None and told["pc1_share"] is None
    assert told["default_explained"] is None


def test_without_a_judge_all_responses_make_the_vectors():
    found = gathered([role("default", "default", ["all/even"], one_block([[4.0, 0.0]])),
                      role("poet", "role", ["all/even", "all/odd"], one_block([[1.0, 1.0], [1.0, 3.0]]))], min_count=2)
    assert [(one.name, one.kind) for one in found.vectors] == [("poet", "all")]
    torch.testing.assert_close(found.axis, torch.tensor([[3.0, -2.0]]), **FLOAT32)


def test_too_little_to_conclude_is_refused():
    with pytest.raises(DataError, match="no role has 3 responses that play it fully; the best one has 2"):
        gathered(BY_HAND, min_count=3)
    with pytest.raises(DataError, match="no response of the default has a token that counts"):
        gathered(BY_HAND[1:], min_count=1)


def test_the_folder_holds_the_axis_its_vectors_and_a_table_for_each_picture(tmp_path):
    found = gathered(BY_HAND, min_count=1)
    space = space_of(found, 0, rows="fully_and_somewhat", scale="as_is")
    write_outcome(tmp_path, found, space, axis_of(found, space, {"model": "m"}))
    axis = AssistantAxis.load(tmp_path / "axis.safetensors")
    assert axis.middle == 0 and axis.meta["model"] == "m" and json.loads(axis.meta["counts"])["mute"]["1"] == 1
    assert axis.default_stats.mean == pytest.approx(5.0) and axis.default_stats.std == pytest.approx(1.0)
    assert (axis.default_stats.low, axis.default_stats.high, axis.default_stats.n) == (
        pytest.approx(4.1), pytest.approx(5.9), 2)
    assert sorted(axis.roles) == ["ghost", "poet"] and sorted(axis.traits) == ["calm"]
    assert json.loads((tmp_path / "space.json").read_text()) == json.loads(json.dumps(space.table))
    tables = {file.stem: file.read_text().splitlines() for file in (tmp_path / "tables").iterdir()}
    assert {name: len(rows) - 1 for name, rows in tables.items()} == {
        "counts": 10, "layers": 1, "traits": 1, "variance": 2, "roles": 4}
    assert tables["roles"][0] == "name,kind,n,projection,pc1,pc2,pc3,cosine1,cosine2,cosine3"
    assert tables["counts"][1:3] == ["default,all,2", "poet,0,1"]
    cumulative = [float(row.split(",")[2]) for row in tables["variance"][1:]]
    assert cumulative[-1] == pytest.approx(1.0)
