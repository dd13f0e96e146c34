"""All SQL: the tables, the queries, the migrations."""
