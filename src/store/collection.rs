//! A collection of which every command names the simple collation.
//!
//! A collection may have a default collation, such as one that ignores case. A command that names none compares
//! by it: an edit of the case alone would count as no change, and two slugs as one. The collections that
//! tenantry makes have none; that of the tenants may have been there before.

use mongodb::action::{
    Aggregate, CountDocuments, CreateIndex, Delete, EstimatedDocumentCount, Find, FindOne,
    FindOneAndUpdate, InsertMany, InsertOne, Update,
};
use mongodb::bson::{Document, doc};
use mongodb::options::{Collation, UpdateModifications};
use mongodb::{Database, IndexModel};

/// Documents of one kind. Offers the commands that tenantry uses.
#[derive(Debug, Clone)]
pub struct Collection(mongodb::Collection<Document>);

/// Compares bytes.
pub(super) fn simple() -> Collation {
    Collation::builder().locale("simple".to_owned()).build()
}

/// The same, in a command that is written out.
pub(super) fn simple_document() -> Document {
    doc! { "locale": "simple" }
}

impl Collection {
    pub(super) fn of(database: &Database, name: &str) -> Self {
        Self(database.collection(name))
    }

    pub(super) fn name(&self) -> &str {
        self.0.name()
    }

    pub(super) fn find(&self, filter: Document) -> Find<'_, Document> {
        self.0.find(filter).collation(simple())
    }

    pub(super) fn find_one(&self, filter: Document) -> FindOne<'_, Document> {
        self.0.find_one(filter).collation(simple())
    }

    pub(super) fn find_one_and_update(
        &self,
        filter: Document,
        update: impl Into<UpdateModifications>,
    ) -> FindOneAndUpdate<'_, Document> {
        self.0.find_one_and_update(filter, update).collation(simple())
    }

    pub(super) fn update_one(
        &self,
        filter: Document,
        update: impl Into<UpdateModifications>,
    ) -> Update<'_> {
        self.0.update_one(filter, update).collation(simple())
    }

    pub(super) fn update_many(
        &self,
        filter: Document,
        update: impl Into<UpdateModifications>,
    ) -> Update<'_> {
        self.0.update_many(filter, update).collation(simple())
    }

    pub(super) fn delete_one(&self, filter: Document) -> Delete<'_> {
        self.0.delete_one(filter).collation(simple())
    }

    pub(super) fn delete_many(&self, filter: Document) -> Delete<'_> {
        self.0.delete_many(filter).collation(simple())
    }

    pub(super) fn count_documents(&self, filter: Document) -> CountDocuments<'_> {
        self.0.count_documents(filter).collation(simple())
    }

    pub(super) fn aggregate(&self, pipeline: impl IntoIterator<Item = Document>) -> Aggregate<'_> {
        self.0.aggregate(pipeline).collation(simple())
    }

    // The rest compares nothing.

    pub(super) fn estimated_document_count(&self) -> EstimatedDocumentCount<'_> {
        self.0.estimated_document_count()
    }

    pub(super) fn insert_one(&self, document: &Document) -> InsertOne<'_> {
        self.0.insert_one(document)
    }

    pub(super) fn insert_many<'a>(&'a self, documents: &'a [Document]) -> InsertMany<'a> {
        self.0.insert_many(documents)
    }

    pub(super) fn create_indexes(
        &self,
        indexes: Vec<IndexModel>,
    ) -> CreateIndex<'_, mongodb::action::Multiple> {
        self.0.create_indexes(indexes)
    }
}
