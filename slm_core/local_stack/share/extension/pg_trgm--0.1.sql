-- Prefect's migrations index names with pg_trgm, which the wheel does not contain; the index
-- only makes a search by part of a name faster. This operator class lets the migrations run.
-- It stores no keys (void_in returns nothing, which GIN takes for "no keys in this row") and
-- holds no operators, so that the planner never reads such an index: names are searched row
-- by row, with the same results.

create function slm_no_keys(text, internal, internal) returns internal
  language internal immutable strict parallel safe as 'void_in';
create function slm_no_query(text, internal, smallint, internal, internal, internal, internal)
  returns internal language internal immutable strict parallel safe as 'void_in';
create function slm_no_match(internal, smallint, text, integer, internal, internal, internal, internal)
  returns boolean language internal immutable strict parallel safe as 'void_in';

create operator class gin_trgm_ops for type text using gin as
  function 1 bttextcmp(text, text),
  function 2 slm_no_keys(text, internal, internal),
  function 3 slm_no_query(text, internal, smallint, internal, internal, internal, internal),
  function 4 slm_no_match(internal, smallint, text, integer, internal, internal, internal, internal),
  storage text;
