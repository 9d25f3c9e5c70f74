import pytest

from gingham import RECIPES, Recipe, RecipeError


def test_article_recipe_has_the_articles_settings():
    article = RECIPES["article"]
    assert (article.network, article.epochs, article.batch_size, article.learning_rate, article.momentum) == (
        "article", 3, 64, 0.01, 0.9,
    )  # fmt: skip
    assert (article.mean, article.std, article.precision, article.validation_images) == ((0.5,), (0.5,), "float32", 0)
    assert (article.schedule, article.weight_decay, article.label_smoothing, article.nesterov) == (
        "constant",
        0,
        0,
        False,
    )


def test_all_other_recipes_hold_out_5000_images():
    assert Recipe().validation_images == 5000


def test_unknown_recipe_name_is_an_error():
    with pytest.raises(RecipeError, match=r"unknown recipe 'articel'; did you mean 'article'\? \(known: "):
        RECIPES["articel"]
