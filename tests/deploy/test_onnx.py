import numpy as np
import onnxruntime

from gingham.deploy.onnx import to_onnx
from gingham.inference.neighbours import features


def test_the_features_of_the_graph_equal_those_of_the_library(small_run):
    run, data = small_run
    session = onnxruntime.InferenceSession(to_onnx(run, with_features=True).SerializeToString())
    images = data.train.images[:9]
    actual = session.run(["features"], {"images": images.numpy()})[0]
    assert np.allclose(actual, features(run.model, images), atol=1e-4)
