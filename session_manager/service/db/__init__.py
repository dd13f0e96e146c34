"""Everything that speaks SQL: the tables, the queries, the migrations."""
