"""What the page says, by language."""

TEXTS = {
    "en": {
        "language": "en",
        "title": "What does the picture show?",
        "choose": "Choose a picture",
        "hint": "or drop one here, or paste it",
        "waiting": "Looking …",
        "shown": "The picture",
        "lost": "The server does not answer.",
    },
    "ru": {
        "language": "ru",
        "title": "Что на картинке?",
        "choose": "Выбрать картинку",
        "hint": "или перетащите её сюда, или вставьте из буфера обмена",
        "waiting": "Смотрю…",
        "shown": "Картинка",
        "lost": "Сервер не отвечает.",
    },
}
