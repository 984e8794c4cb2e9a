"""What the pages say, by language: on every page, and on those for pictures and for rows."""

Texts = dict[str, dict[str, str]]

EVERYWHERE: Texts = {
    "en": {
        "language": "en",
        "waiting": "Looking …",
        "lost": "The server does not answer.",
        "likely": "How likely each class is",
    },
    "ru": {
        "language": "ru",
        "waiting": "Смотрю…",
        "lost": "Сервер не отвечает.",
        "likely": "Насколько вероятен каждый класс",
    },
}

PICTURE: Texts = {
    "en": {
        "title": "What does the picture show?",
        "choose": "Choose a picture",
        "hint": "or drop one here, or paste it",
        "shown": "The picture",
    },
    "ru": {
        "title": "Что на картинке?",
        "choose": "Выбрать картинку",
        "hint": "или перетащите её сюда, или вставьте из буфера обмена",
        "shown": "Картинка",
    },
}

ROW: Texts = {
    "en": {
        "title": "Prediction: {target}",
        "columns": "What is known",
        "hint": "What is left empty counts as unknown. Grey numbers are means.",
        "unknown": "unknown",
        "predict": "Predict",
    },
    "ru": {
        "title": "Предсказание: {target}",
        "columns": "Что известно",
        "hint": "Пустое считается неизвестным. Серые числа — средние.",
        "unknown": "неизвестно",
        "predict": "Предсказать",
    },
}
