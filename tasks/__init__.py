"""Experiments over one training loop: ``python -m tasks.<name> train|evaluate|analyse [--preset P] ...``.

An experiment is one short module ``tasks/<name>/`` with a configuration and a task:

* a frozen dataclass derived from :class:`tasks.config.TrainConfig` that adds the model's and the data's
  fields under their published names, checks them in ``__post_init__``, and documents each with a string below
  it;
* a class derived from :class:`tasks.task.Task` with

  ``name``, ``config_class``, ``presets``
      the experiment's name, its dataclass and its named configurations; ``quick`` is the one that learns in
      minutes;
  ``score``
      the evaluation metric by which the best checkpoint is chosen, higher is better;
  ``build_model()``
      the model, with whatever lazy parameters it has: the loop runs one batch through it first;
  ``batch(step, generator)``
      the training batch of one step as a tuple of CPU tensors, the model's input first. It depends on nothing
      but its arguments: that is why a resumed run continues bit for bit, and why worker processes may prepare
      batches ahead. With a curriculum it also reads the level, ``self.curriculum.level``;
  ``evaluation_batches()``
      the fixed evaluation set, in the same form;
  ``loss(model, batch)``
      the scalar loss and a dictionary of metrics with one row per sample, (B, ...). The same call serves
      training and evaluation. A metric named ``accuracy...`` is kept in the checkpoint list
      ``test_accuracies...``. Nothing here may wait for the device: no ``.item()``, no ``.cpu()``;
  ``analyse(model, folder)``
      optional: the pictures of a trained model. ``evaluate`` can be replaced too where a mean over batches is
      not enough;
  ``curves``
      optional: the metrics that ``training.png`` shows over the steps;
  ``make_curriculum()``
      optional: a :class:`tasks.curriculum.Curriculum`, whose level rises where training metrics reach their
      goals. The loop feeds it, logs its level as a column of ``train.csv`` and keeps its state in the
      checkpoint, so a resumed run is at the same level with the same running means; batches that workers
      prepared for an earlier level are thrown away;
  ``beyond_batches()``
      optional: sets that are harder than training (longer, larger), by name, which only the command
      ``evaluate`` scores, as ``name/metric``;

* ``__main__.py`` with ``raise SystemExit(tasks.command.main(TheTask))``.

The loop (:mod:`tasks.train`) gives the rest: devices and mixed precision, seeds, schedules, clipping,
progress bar, ``train.csv``, ``test.csv`` and TensorBoard, atomic ``checkpoint.pt`` and ``checkpoint_best.pt``
in the published layout, exact resume.
"""
