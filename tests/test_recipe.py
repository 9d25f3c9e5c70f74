import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gingham import RECIPES, Recipe, RecipeError
from gingham.recipe import parse_settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs got 0; allowed: a number above 0"),
        ({"epochs": float("nan")}, "epochs got nan"),
        ({"batch_size": 1.5}, "batch_size got 1.5; allowed: a whole number"),
        ({"batch_size": True}, "batch_size got True"),
        ({"momentum": 1}, "momentum got 1"),
        ({"schedule": "cosin"}, "schedule got 'cosin'; allowed: one of constant, linear, cosine"),
        ({"std": (0.0,)}, "std got"),
        ({"std": "0.5"}, "std got '0.5'"),
        ({"seed": "1"}, "seed got '1'"),
        ({"seed": 10**5000}, "seed got a value too long to show; allowed: a whole number"),
        ({"name": "a\nb"}, "name got .*; allowed: a name of 1 to 100 printable characters"),
        ({"network": "\ud800"}, "network got .*; allowed: the name of a network"),
        ({"learning_rat": 1}, "unknown recipe field 'learning_rat'; did you mean 'learning_rate'"),
        ({"nesterov": True, "momentum": 0}, "nesterov is true with momentum 0"),
        ({"outlier_share": 0.2, "photo_share": 0.1}, "outlier_share is 0.2 with photo_share 0.1 and hard_share 1"),
    ],
)
def test_wrong_field_or_value_is_an_error_that_says_what_is_allowed(changes, message):
    with pytest.raises(RecipeError, match=message.replace("(", r"\(")):
        Recipe().replace(**changes)


def test_settings_are_parsed_by_the_type_of_the_field():
    assert parse_settings(["epochs=0.5", "batch_size=32", "nesterov=yes", "mean=0.1,0.2,0.3", "schedule=cosine"]) == {
        "epochs": 0.5, "batch_size": 32, "nesterov": True, "mean": (0.1, 0.2, 0.3), "schedule": "cosine",
    }  # fmt: skip


@pytest.mark.parametrize(
    "setting", ["epochs", "epochs=", "epochs=three", "batch_size=1.5", "nesterov=maybe", "mean=a,b", "=3"]
)
def test_unreadable_setting_is_an_error(setting):
    with pytest.raises(RecipeError):
        parse_settings([setting])


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_setting_is_accepted_or_a_recipe_error(name, value):
    with contextlib.suppress(RecipeError):
        assert isinstance(Recipe().replace(**parse_settings([f"{name}={value}"])), Recipe)


def test_recipe_round_trips_through_json():
    recipe = RECIPES["article"].replace(seed=5, mean=(0.1, 0.2), std=(1, 2))
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize("value", [None, [1], "fast", 3])
def test_recipe_from_anything_but_an_object_is_an_error(value):
    with pytest.raises(RecipeError, match=r"a recipe got .*; it takes an object of fields"):
        Recipe.from_dict(value)


@pytest.mark.parametrize("images", [1, 7, 136, 2000, 9999])
@pytest.mark.parametrize("name", list(RECIPES))
def test_small_dataset_gets_at_least_500_steps(name, images):
    few = RECIPES[name].for_small_dataset(images)
    assert few.epochs * -(-images // few.batch_size) >= 500
    assert few.epochs >= RECIPES[name].epochs
    assert few.batch_size <= RECIPES[name].batch_size


@pytest.mark.parametrize("name", list(RECIPES))
def test_large_dataset_leaves_the_recipe_unchanged(name):
    assert RECIPES[name].for_small_dataset(10_000) == RECIPES[name]
    assert RECIPES[name].for_small_dataset(55_000) == RECIPES[name]


def test_recipe_with_enough_steps_is_unchanged():
    recipe = RECIPES["fast"].replace(batch_size=8, epochs=200, hard_share=1)
    assert recipe.for_small_dataset(136) == recipe


@pytest.mark.parametrize("images", [17, 33, 129, 305, 2049])
def test_no_batch_of_a_small_dataset_has_a_single_image(images):
    assert images % RECIPES["fast"].for_small_dataset(images).batch_size != 1
