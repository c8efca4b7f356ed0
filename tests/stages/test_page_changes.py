"""The gate's part of the page: rules in order, figures as drawn, and pictures in which every pixel is of the kind that it claims to be."""

import base64
import io
import json
import random

import pytest
from PIL import Image

from stages.page import render
from stages.page.difference import GREYS, UNJUDGED, difference, kinds, window
from stages.page.pictures import MARK
from tests.stages.test_page import CLASSES, COLOURS, PAYLOADS, Seen, assert_harmless, fake_run, fake_verdict, paint

SIZE = (96, 48)  # width, height
CAR, ROAD, TREE = (CLASSES.index(name) for name in ("car", "road", "tree"))
IOU = {"metric": "iou.car", "of": "engine", "against": "released", "limit": "at_least -3", "value": -9.0, "value_of": 50.0}
IOU |= {"value_against": 59.0, "passed": False, "text": "iou.car of engine is 50.00 points", "images": 12}
IOU |= {"confidence": {"at_least": {"edge": -12.0, "se": 1.8, "certain": None}}}


def area(*boxes, ground=ROAD):
    """A class map with boxes (class, left, top, right, bottom)."""
    image = Image.new("L", SIZE, ground)
    for number, *box in boxes:
        image.paste(number, tuple(box))
    return image


LABEL = area((CAR, 60, 20, 80, 36), (255, 0, 44, 96, 48), (TREE, 0, 0, 20, 10))
BEFORE = area((CAR, 60, 20, 80, 36))  # has the car, misses the tree
AFTER = area((TREE, 60, 20, 80, 36), (TREE, 0, 0, 10, 10), (CAR, 10, 0, 20, 10), (CAR, 0, 44, 96, 48))


def changed_run(folder, rules=(IOU,), many=1, **entry):
    """A run whose gate was broken by the car, which stands in one place of every image."""
    run, artifacts = fake_run(folder, pictures=0, run={"exit": 3})
    measured = artifacts["measured"]
    images = [{"index": 7 + k, "name": f"val/{k}", "miou": 1.1, "classes": {"car": 9.0 - k, "pole": 0.2}} for k in range(many)]
    change = {"of": "engine", "against": "released", "problem": None, "miou": 1.25, "classes": {"car": 9.0, "pole": 1.0}, "images": images}
    measurement = measured.json("measurement.json") | {"changes": [change | entry]}
    measured.file("measurement.json").write_text(json.dumps(measurement))
    files = {"changed_label": LABEL, "changed_released_engine": BEFORE, "changed_map_engine": AFTER}
    for image in images:
        Image.new("RGB", SIZE, (90, 120, 60)).save(measured.file(f"changed_image_{image['index']}.png"))
        for name, drawn in files.items():
            paint(drawn, COLOURS).save(measured.file(f"{name}_{image['index']}.png"))
    verdict = fake_verdict()
    verdict |= {"passed": False, "rules": [*verdict["rules"], *rules]}
    artifacts["gate"].file("verdict.json").write_text(json.dumps(verdict))
    return run, artifacts


def shown(html):
    """(alternative text, picture) of every picture on the page."""
    found = [(a["alt"], a["src"].split(",")[1]) for a in Seen(html).all("img")]
    return [(alt, Image.open(io.BytesIO(base64.b64decode(data)))) for alt, data in found]


def test_a_broken_class_is_named_with_its_points_and_what_it_became(tmp_path):
    html, facts = render(*changed_run(tmp_path))
    text, [change] = Seen(html).text(), facts["changes"]
    assert facts["rules"][change["rule"]]["metric"] == "iou.car" and (change["class"], change["points"], change["problem"]) == (
        "car",
        9,
        None,
    )
    [image] = change["images"]
    assert (image["worse"], image["better"], image["other"]) == (20 * 16, 10 * 10, 10 * 10)
    assert image["became"] == {"from": "car", "to": "tree", "pixels": 320}
    assert "car −9.00 points" in text and "Points of IoU lost by class, most first: car 9.0; then pole 1.0." in text
    left, top, right, bottom = image["window"]
    assert left <= 60 and right >= 80 and top <= 20 and bottom >= 36 and right - left < 96
    assert [tile["what"] for tile in image["tiles"]] == ["where", "image", "label", "before", "after", "difference"]


def test_before_and_after_are_the_right_way_round(tmp_path):
    html, facts = render(*changed_run(tmp_path))
    place = facts["changes"][0]["images"][0]["window"]
    tiles = dict(zip(["where", "image", "label", "before", "after", "difference"], shown(html), strict=True))
    for what, drawn in {"label": LABEL, "before": BEFORE, "after": AFTER}.items():
        alt, tile = tiles[what]
        assert tile.tobytes() == drawn.crop(place).tobytes(), what
        assert what in alt and "car" in alt
    colours = tiles["before"][1].convert("RGB")
    assert colours.getpixel((70 - place[0], 30 - place[1])) == tuple(COLOURS[CAR])
    assert tiles["after"][1].convert("RGB").getpixel((70 - place[0], 30 - place[1])) == tuple(COLOURS[TREE])


def test_every_pixel_is_of_the_kind_that_it_is_drawn_as():
    chance = random.Random(1)
    label, before, after = (Image.frombytes("L", (40, 30), bytes(chance.choice([0, 1, 2, 255]) for _ in range(1200))) for _ in range(3))
    found = kinds(label, before, after)
    drawn = difference({"photo": Image.new("RGB", (40, 30)), "maps": [label, before, after], "masks": found, "window": (0, 0, 40, 30)}, 40)
    numbers, seen = drawn.tobytes(), {kind: mask.tobytes() for kind, mask in found.items()}
    assert drawn.getpalette()[3 * GREYS : 3 * GREYS + 3] == list(UNJUDGED)
    for k, (true, one, other) in enumerate(zip(label.tobytes(), before.tobytes(), after.tobytes(), strict=True)):
        wanted = None
        if true != 255 and one != other:
            wanted = "worse" if one == true else "better" if other == true else "other"
        assert {kind for kind, mask in seen.items() if mask[k]} == ({wanted} if wanted else set())
        first = {"other": GREYS + 1, "better": GREYS + 3, "worse": GREYS + 5}.get(wanted, 0)
        assert numbers[k] in (first, first + 1) if wanted else numbers[k] == GREYS if true == 255 else numbers[k] < GREYS


def test_shrinking_hides_no_pixel_that_got_worse():
    label, before, after = Image.new("L", (2000, 1000), 1), Image.new("L", (2000, 1000), 1), Image.new("L", (2000, 1000), 1)
    after.putpixel((777, 333), 2)
    picture = {"photo": Image.new("RGB", (2000, 1000)), "maps": [label, before, after], "masks": kinds(label, before, after)}
    small = difference(picture | {"window": (0, 0, 2000, 1000)}, 400).convert("RGB")
    assert small.size == (400, 200) and small.getpixel((777 * 400 // 2000, 333 * 200 // 1000)) == MARK


def test_the_window_closes_in_on_a_small_loss_and_shows_everything_where_the_loss_is_everywhere():
    focus = Image.new("L", (2048, 1024))
    focus.paste(255, (1500, 700, 1540, 760))
    left, top, right, bottom = window(focus)
    assert left < 1500 and top < 700 and right > 1540 and bottom > 760 and right - left < 2048 / 4
    assert window(Image.new("L", (90, 50), 255)) == window(Image.new("L", (90, 50))) == (0, 0, 90, 50)
    assert window(Image.new("L", (1, 1), 255)) == (0, 0, 1, 1)


def test_broken_rules_stand_first_then_undecided_ones_each_with_figure_and_limit(tmp_path):
    open_ = IOU | {"metric": "miou", "passed": None, "value": -0.4, "limit": "at_least -1", "confidence": {"at_least": {"edge": -1.4}}}
    html, facts = render(*changed_run(tmp_path, rules=(open_, IOU)))
    rows = [[cell.strip("|") for cell in row] for row in Seen(html).tables[0][1:]]
    assert [row[0] for row in rows] == ["✗ fail", "? undecided", "✓ pass", "✓ pass"]
    assert [(row[2], row[3]) for row in rows[:2]] == [("−9.00 points", "at least −3"), ("−0.40 points", "at least −1")]
    assert [rule["interval"] for rule in facts["rules"]] == [None, None, [-1.4, pytest.approx(0.6)], [-12.0, -6.0]]
    assert "-9, between -12 and -6; at least −3 was asked" in [svg.get("aria-label") for svg in Seen(html).all("svg")]
    assert [facts["rules"][change["rule"]]["metric"] for change in facts["changes"]] == ["iou.car", "miou"]
    assert facts["changes"][1]["again"] is True and "2 of 4 rules hold, 1 broken and 1 undecided" in Seen(html).text()
    assert html.index("<h2>Gate</h2>") < html.index("<h2>Class by class</h2>")


def test_the_largest_loss_that_passed_is_shown_and_what_gained_is_not(tmp_path):
    less = IOU | {"passed": True, "metric": "miou", "value_of": 58.0, "value": -1.0}
    gained = IOU | {"passed": True, "metric": "iou.pole", "value_of": 60.0, "value": 1.0}
    _, facts = render(*changed_run(tmp_path, rules=(less, IOU | {"passed": True}, gained)))
    assert [facts["rules"][change["rule"]]["metric"] for change in facts["changes"]] == ["iou.car"]


def test_the_images_that_the_verdict_names_come_first(tmp_path):
    worst = IOU | {"worst": [{"image": 9, "name": "x", "points": 5.0}, {"image": 7, "name": "y", "points": 3.0}]}
    _, facts = render(*changed_run(tmp_path, rules=(worst,), many=4))
    assert [image["index"] for image in facts["changes"][0]["images"]] == [9, 7, 8]


@pytest.mark.parametrize(
    "rules, entry, said",
    [
        ((IOU,), {"problem": "its counts per image (artifact 12) is not in this store: `store pull DIR 12`"}, "store pull DIR 12"),
        ((IOU,), {"images": []}, "no class of any image lost anything"),
        ((IOU,), {"of": "onnx"}, "add [engine, released] to its pairs"),
        ((IOU | {"against": "student"},), {}, "lost nothing against student that a picture could show"),
        ((IOU | {"against": None, "limit": "at_least 60"},), {}, "a limit on a figure alone names no other model"),
        ((IOU,), {"images": [{"index": 3, "name": "gone", "classes": {"car": 1.0}}]}, "cannot be read"),
    ],
    ids=["not in the store", "no loss", "not run", "equal", "alone", "files lost"],
)
def test_where_there_are_no_pictures_the_page_says_why(tmp_path, rules, entry, said):
    html, facts = render(*changed_run(tmp_path, rules=rules, **entry))
    assert said in facts["changes"][0]["problem"] and said in Seen(html).text() and shown(html) == []


def test_a_measurement_of_before_such_pictures_asks_for_another_run(tmp_path):
    run, artifacts = changed_run(tmp_path)
    old = artifacts["measured"].json("measurement.json")
    del old["changes"]
    artifacts["measured"].file("measurement.json").write_text(json.dumps(old))
    assert "run the recipe again" in render(run, artifacts)[1]["changes"][0]["problem"]


def test_six_noisy_pictures_leave_the_page_within_three_megabytes(tmp_path):
    rules = [IOU, IOU | {"metric": "iou.pole"}, IOU | {"metric": "miou"}]
    run, artifacts = changed_run(tmp_path, rules=rules, many=6)
    noise = Image.frombytes("L", (640, 320), random.Random(1).randbytes(640 * 320))
    maps = [noise.point([(v + shift) % 8 for v in range(256)]) for shift in range(3)]
    for k in range(7, 13):
        Image.merge("RGB", [noise] * 3).save(artifacts["measured"].file(f"changed_image_{k}.png"), compress_level=1)
        for name, drawn in zip(("label", "released_engine", "map_engine"), maps, strict=True):
            paint(drawn, COLOURS).save(artifacts["measured"].file(f"changed_{name}_{k}.png"), compress_level=1)
    html, facts = render(run, artifacts)
    assert sum(len(change["images"]) for change in facts["changes"]) == 6 and len(html) < 1_200_000


@pytest.mark.parametrize("payload", PAYLOADS[::3])
def test_hostile_names_of_what_changed_stay_texts(tmp_path, payload):
    names = {"of": payload, "against": payload, "metric": f"iou.{payload}"}
    worst = [{"image": 7, "name": payload, "points": 1.0}, payload]
    rule = IOU | names | {"text": payload, "limit": payload, "worst": worst, "confidence": {payload: {"edge": payload}}}
    images = [{"index": 7, "name": payload, "miou": payload, "classes": {payload: 5.0, "car": payload}}, payload, {"index": payload}]
    change = {"classes": {payload: 9.0, "car": payload}, "miou": payload, "images": images}
    run, artifacts = changed_run(tmp_path, rules=(IOU | {"worst": worst}, rule), **change)
    measurement = artifacts["measured"].json("measurement.json")
    measurement["classes"][0] = payload
    listed = measurement["changes"][0]
    measurement["changes"] += [payload, listed | names, listed | {"of": payload, "problem": payload}]
    artifacts["measured"].file("measurement.json").write_text(json.dumps(measurement))
    html, facts = render(run, artifacts)
    seen = assert_harmless(html)
    assert json.loads("".join(seen.data)) == facts and len(facts["changes"]) == 2 and len(facts["changes"][0]["images"]) == 1
    assert all(image["name"].isprintable() for change in facts["changes"] for image in change["images"])
