"""Stand-ins for dbt's cross-database macros, so that sqlfluff can read a model without dbt."""


def dateadd(part: str, interval: object, date: str) -> str:
    return f"date_add({date}, interval ({interval}) {part})"


def datediff(first: str, second: str, part: str) -> str:
    return f"date_diff('{part}', {first}, {second})"


def type_string() -> str:
    return "varchar"
