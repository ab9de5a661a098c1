"""The network of the task tabular: dense layers behind a scaling of the inputs by the survey."""

from fluffle.table_model import TableModel
from fluffle_worker import keras_task
from fluffle_worker.keras_task import KerasModel, import_keras

# Unless the plan has a learning rate; without a survey too, steps of this size are safe.
LEARNING_RATE = 0.005


def network_of(table: TableModel) -> KerasModel:
    """Return a compiled network for the columns and classes of a table.

    Its outputs are probabilities of the classes, or a number.
    """
    keras = import_keras()
    layers = [keras.Input((len(table.columns),))]
    if table.surveyed:
        layers.append(keras_task.SurveyNormalization())
    for units in table.hidden:
        layers.append(keras.layers.Dense(units, "relu"))
        if table.dropout:
            layers.append(keras.layers.Dropout(table.dropout))
    if table.classes is not None:
        layers.append(keras.layers.Dense(len(table.classes), "softmax"))
        loss, metrics = "sparse_categorical_crossentropy", ["accuracy"]
    else:
        layers += [keras.layers.Dense(1), keras.layers.Rescaling(table.scale, table.center)]
        loss, metrics = "mean_squared_error", ["mae", keras.metrics.RootMeanSquaredError(name="rmse")]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(LEARNING_RATE), loss=loss, metrics=metrics)
    return model
