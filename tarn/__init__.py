"""Tarn, a lakehouse in one repository: the engine that reads the declarations beside it."""
